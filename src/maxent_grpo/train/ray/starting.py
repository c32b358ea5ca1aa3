"""How slowly Ray may start. Without Ray itself, so that a launcher can read it."""

GCS_SECONDS = "300"
"""What Ray's head process may take to come up (RAY_gcs_server_port_wait_time_s); Ray's 30 s are for an idle machine."""
START_ATTEMPTS = 3
NODE_TOO_SLOW = "current node timed out during startup"
"""What Ray says where a node is not up after 30 s (`ray._private.node`), a limit that no setting moves."""
