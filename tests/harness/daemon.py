class Daemon: pass
