"""The script of `repnext make-digit-scenes`: same options, same output."""

from repnext_mm.cli import tool

if __name__ == '__main__':
    tool('make-digit-scenes')
