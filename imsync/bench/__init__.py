"""What `imsync bench` measures: imsync beside a hand-written loop, on this machine, each in processes of its own."""
