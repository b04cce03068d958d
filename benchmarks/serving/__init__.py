"""The server, measured from outside: two processes of their own, asked over loopback."""
