"""Tables of bad inputs: what each public entry of the package must refuse, and in which words.

A module for each area holds ROWS, entry -> rows, and FEW, entry -> why it has fewer than five. tests/test_bad_inputs.py
reads them; what is passed is only made when a row is called (run.py), so that reading them costs nothing.
"""
