"""`python -m lit_tr`: the same as `lit-tr`."""

from lit_tr.commands import main

main()
