"""The script of `repnext demo-app`: same options, same output."""

from repnext_mm.cli import tool

if __name__ == '__main__':
    tool('demo-app')
