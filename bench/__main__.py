import signal
import sys

if __name__ == "__main__":
    try:
        from bench.cli import main

        main()
    except KeyboardInterrupt:  # while its modules were loaded
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt but the interpreter's own end
