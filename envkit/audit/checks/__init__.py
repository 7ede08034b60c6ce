"""The checks of an audit, by what they look at; `envkit.audit.runner` lists them in order."""
