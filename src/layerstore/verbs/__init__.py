"""The verbs, one module (or package) each: functions over an open store. Order of writing, and who may do what when."""
