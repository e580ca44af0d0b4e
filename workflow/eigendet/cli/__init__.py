"""Run each stage by a command, with or without Snakemake.

commands            the command line itself, and what runs networks
analysis            from covariance files on: spectra, their comparison, forecasts, the report
widths_commands     channel groups, widths, the front, readings
init_command        `eigendet init`
export_command      `eigendet export`
plugin_commands     `eigendet plugins`
options             what several commands share
reports             what a command says: on the terminal, or in a log
"""

from eigendet.cli.commands import main as main
