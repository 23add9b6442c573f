"""Reports: records as one HTML page, tables and figures."""
