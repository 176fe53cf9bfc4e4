import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    if Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]  # the current folder, whose `models` would be taken for ours
    try:
        from bench.cli import main

        main()
    except KeyboardInterrupt:  # while its modules were loaded
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt but the interpreter's own end
