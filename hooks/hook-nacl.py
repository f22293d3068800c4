"""PyNaCl: its library asks for cffi's C module by name; nothing else of either package but the imported modules."""

hiddenimports = ["_cffi_backend"]
