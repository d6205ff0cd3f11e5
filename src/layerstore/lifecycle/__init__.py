"""The states, and what each transition does to the catalog. Pure: no disk, no clock; tables in, tables out."""
