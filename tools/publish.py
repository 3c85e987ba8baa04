"""The script of `repnext publish`: same options, same output."""

from repnext_mm.cli import tool

if __name__ == '__main__':
    tool('publish')
