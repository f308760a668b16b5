"""What runs inside a worker of the vLLM engine: it starts a vLLM that nobody else can reach, and ends it.

vLLM is no library of medserve's: it runs as a child of the worker, out of an environment of its own (`build.py`, which
asks that by `probe.py`), and the gateway speaks to its socket directly. `spec.py` is what the worker is asked for,
`memory.py` what that takes, `plan.py` all that is known, and refused, before anything is started; `command.py` is how
vLLM is started and `chat.jinja` how it writes a prompt; `log.py` reads what it says, `family.py` ends it and all that
it started, and `warden.py` does so where the worker cannot.
"""
