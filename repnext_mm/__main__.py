"""`python -m repnext_mm VERB`, the same as `repnext VERB`."""

from repnext_mm.cli import main

if __name__ == '__main__':
    main()
