"""The place of the CuPy operations. There are none yet: every operation runs on the CPU."""
