"""The script of `repnext weights`: same options, same output."""

from repnext_mm.cli import tool

if __name__ == '__main__':
    tool('weights')
