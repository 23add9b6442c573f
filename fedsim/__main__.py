"""`python -m fedsim` is `fedsim`."""

from fedsim.cli.app import app

app(prog_name="fedsim")
