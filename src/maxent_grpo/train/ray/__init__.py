"""Sampling and learning in Ray workers: the drivers ``sync`` and ``async`` (docs/guides/ray.md).

::

    driver's process (`driver`)                                     worker processes, one place each (`cluster`)

    PromptStream
        │ tickets
        ▼              ┌───────────────────┐  SampleTasks, weights
    GroupBuffer ◀─────▶│ RolloutSupervisor │ ─────────────────────▶ RolloutWorker × rollout_workers
     (`buffer`)        └───────────────────┘ ◀─────────────────────   samples and scores
        │ the oldest R groups                  SampledGroups
        ▼              ┌───────────────────┐  RolloutBatch
                       │ LearnerSupervisor │ ─────────────────────▶ LearnerWorker × learner_workers
                       └───────────────────┘ ◀─────────────────────   train.step ─▶ ReferenceWorker × reference_workers
                        (`supervisors`)        UpdateResult, weights

`messages` holds what travels. Weights go through Ray's object store once, whatever the number of rollout workers.
"""

GCS_SECONDS = "300"
"""Time for Ray's head process to come up (RAY_gcs_server_port_wait_time_s); Ray's 30 s are for an idle machine."""
START_ATTEMPTS = 3
NODE_TOO_SLOW = "current node timed out during startup"
"""Ray's message where a node is not up after 30 s (`ray._private.node`), a limit that no setting moves."""
