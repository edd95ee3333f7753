"""The report room: files of a run -> statistics, tables, figures. Reads files only; knows neither Ray nor Torch."""
