"""Runs to a target at every batch size and rate, which the report does not show: they are to be compared with."""

from ..question import Report

REPORT = Report(order=80)
