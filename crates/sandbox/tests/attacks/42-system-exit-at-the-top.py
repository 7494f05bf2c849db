# Ends the program with success before there is a function.
# a: runtime_error
# b: runtime_error
raise SystemExit(0)
