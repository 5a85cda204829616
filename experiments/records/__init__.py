"""Typed records: what training and studies write to files, and reports and later runs read."""
