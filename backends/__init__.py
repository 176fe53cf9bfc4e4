"""One folder per FHE backend, behind one interface (`backends.api`). Imports nothing of `bench`."""
