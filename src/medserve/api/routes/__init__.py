"""Every module of this folder is a family of routes: it defines `router`, and that is all it takes to be served."""
