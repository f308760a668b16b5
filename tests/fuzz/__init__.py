"""Every route of the OpenAPI document, called with what the document allows and with what it forbids."""
