import sys

if __name__ == "__main__":
    try:
        from bench.cli import main

        main()
    except KeyboardInterrupt:  # while its modules were loaded
        sys.exit(130)
