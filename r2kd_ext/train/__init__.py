"""The reference trainer, and what every run needs: files that are whole, a clean Ctrl-C."""
