"""``python -m maxent_grpo.launch.ray_probe ADDRESS OWN_ADDRESS NODES``: exit code 0 once so many Ray nodes live."""

import logging
import sys

import ray


def main() -> int:
    """Connect as a driver would and count."""
    address, own, nodes = sys.argv[1:]
    ray.init(address=address, _node_ip_address=own, log_to_driver=False, logging_level=logging.ERROR)
    alive = sum(bool(node["Alive"]) for node in ray.nodes())
    ray.shutdown()
    return int(alive < int(nodes))


if __name__ == "__main__":
    sys.exit(main())
