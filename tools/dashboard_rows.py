"""What the dashboard shows: rows of panels, each with title, unit, queries and their legends."""

CALL = "facegrid_call_seconds_bucket"

ROWS: list[tuple[str, list[tuple[str, str, list[tuple[str, str]]]]]] = [
    (
        "Searches and writes",
        [
            (
                "Calls a second by method",
                "reqps",
                [("sum by (method) (rate(facegrid_calls_total[1m]))", "{{method}}")],
            ),
            (
                "Calls that failed, by reason",
                "reqps",
                [
                    (
                        'sum by (code, reason) (rate(facegrid_calls_total{code!="OK"}[1m]))',
                        "{{code}} {{reason}}",
                    )
                ],
            ),
            (
                "Time of searches",
                "s",
                [
                    (
                        (
                            f"histogram_quantile({share}, sum by (le)"
                            f' (rate({CALL}{{method="IdentificationService/Identify"}}[1m])))'
                        ),
                        f"{share}",
                    )
                    for share in (0.5, 0.95, 0.99)
                ],
            ),
            (
                "Time of writes, 99 %",
                "s",
                [
                    (
                        (
                            "histogram_quantile(0.99, sum by (le, method)"
                            f' (rate({CALL}{{method=~"EnrolmentService/.*"}}[1m])))'
                        ),
                        "{{method}}",
                    )
                ],
            ),
            (
                "Batches not whole or not confirmed",
                "ops",
                [
                    ("sum(rate(facegrid_router_partial_batches_total[1m]))", "coverage below 1"),
                    ("sum(rate(facegrid_router_unconfirmed_batches_total[1m]))", "unconfirmed"),
                ],
            ),
            (
                "Probes and batches a second",
                "ops",
                [
                    ("sum(rate(facegrid_router_probes_total[1m]))", "probes"),
                    ("sum(rate(facegrid_router_batches_total[1m]))", "batches"),
                ],
            ),
            (
                "Templates a second",
                "ops",
                [("sum by (change) (rate(facegrid_router_templates_total[1m]))", "{{change}}")],
            ),
            (
                "Second copies asked",
                "ops",
                [("sum by (cause) (rate(facegrid_router_hedges_total[1m]))", "{{cause}}")],
            ),
            (
                "Nodes as routers see them",
                "s",
                [("max by (node) (facegrid_router_node_seconds)", "{{node}}")],
            ),
            (
                "Nodes passed over",
                "short",
                [("max by (node) (facegrid_router_node_failing)", "{{node}}")],
            ),
            (
                "Searches under way at nodes",
                "short",
                [("sum by (node) (facegrid_router_node_calls)", "{{node}}")],
            ),
        ],
    ),
    (
        "Searches in nodes",
        [
            (
                "Probes that wait",
                "short",
                [("facegrid_node_search_waiting_probes", "{{instance}}")],
            ),
            (
                "Probes and callers of one search",
                "short",
                [
                    (
                        (
                            "sum(rate(facegrid_node_search_probes_total[1m]))"
                            " / sum(rate(facegrid_node_search_batches_total[1m]))"
                        ),
                        "probes",
                    ),
                    (
                        (
                            "sum(rate(facegrid_node_search_calls_total[1m]))"
                            " / sum(rate(facegrid_node_search_batches_total[1m]))"
                        ),
                        "callers",
                    ),
                ],
            ),
            (
                "Wait for a search to begin",
                "s",
                [
                    (
                        (
                            "sum by (instance) (rate(facegrid_node_search_wait_seconds_total[1m]))"
                            " / sum by (instance) (rate(facegrid_node_search_calls_total[1m]))"
                        ),
                        "{{instance}}",
                    )
                ],
            ),
            (
                "Callers not searched for",
                "ops",
                [
                    (
                        "sum by (cause) (rate(facegrid_node_search_unsearched_total[1m]))",
                        "{{cause}}",
                    )
                ],
            ),
        ],
    ),
    (
        "GPUs",
        [
            (
                "Memory of a GPU that shards take",
                "percentunit",
                [
                    (
                        (
                            "facegrid_node_device_memory_bytes"
                            " / facegrid_node_device_memory_limit_bytes"
                        ),
                        "{{instance}} {{device}}",
                    )
                ],
            ),
            (
                "Shards on a GPU",
                "short",
                [
                    ("facegrid_node_device_shards", "{{instance}} {{device}}"),
                    ("facegrid_node_device_lost > 0", "{{instance}} {{device}} lost"),
                ],
            ),
            (
                "Batches of a GPU",
                "ops",
                [
                    (
                        (
                            "sum by (instance, device)"
                            " (rate(facegrid_node_device_searches_total[1m]))"
                        ),
                        "{{instance}} {{device}}",
                    ),
                    (
                        (
                            "sum by (instance, device)"
                            " (rate(facegrid_node_device_failures_total[1m]))"
                        ),
                        "{{instance}} {{device}} failed",
                    ),
                    (
                        (
                            "sum by (instance, device)"
                            " (rate(facegrid_node_device_shards_left_total[1m]))"
                        ),
                        "{{instance}} {{device}} shards left",
                    ),
                ],
            ),
        ],
    ),
    (
        "Shards",
        [
            (
                "Copies by state",
                "short",
                [("sum by (role, state) (facegrid_node_shard_state)", "{{role}} {{state}}")],
            ),
            (
                "Records that followers are behind",
                "short",
                [
                    (
                        "facegrid_node_shard_lag_records > 0",
                        "{{shard}} {{instance}}",
                    )
                ],
            ),
            (
                "Copies that are not confirmed",
                "short",
                [("facegrid_node_shard_confirmed == 0", "{{shard}} {{instance}}")],
            ),
            (
                "Oldest confirmation by node",
                "s",
                [
                    (
                        "max by (instance) (facegrid_node_shard_confirmed_age_seconds < Inf)",
                        "{{instance}}",
                    )
                ],
            ),
            (
                "Templates by gallery",
                "short",
                [
                    (
                        (
                            "sum by (gallery) (max by (gallery, shard)"
                            " (facegrid_node_shard_templates))"
                        ),
                        "{{gallery}}",
                    ),
                    (
                        (
                            "sum by (gallery) (max by (gallery, shard)"
                            " (facegrid_node_shard_indexed_templates))"
                        ),
                        "{{gallery}}, indexed",
                    ),
                ],
            ),
            (
                "Erased rows in memory",
                "short",
                [("sum by (instance) (facegrid_node_shard_erased_templates)", "{{instance}}")],
            ),
            (
                "Memory of rows by node",
                "bytes",
                [("sum by (instance) (facegrid_node_shard_memory_bytes)", "{{instance}}")],
            ),
            (
                "Records a second",
                "ops",
                [
                    (
                        (
                            "sum by (gallery) (max by (gallery, shard)"
                            " (deriv(facegrid_node_shard_position[1m])))"
                        ),
                        "{{gallery}}",
                    )
                ],
            ),
            (
                "Segments by node",
                "short",
                [("sum by (instance) (facegrid_node_shard_segments)", "{{instance}}")],
            ),
            (
                "Flushes a minute",
                "short",
                [("60 * sum(rate(facegrid_node_flushes_total[5m]))", "flushes")],
            ),
            (
                "Takeovers and generations",
                "short",
                [
                    ("sum(increase(facegrid_node_takeovers_total[5m]))", "takeovers"),
                    ("sum(changes(facegrid_node_shard_generation[5m]))", "generations"),
                ],
            ),
        ],
    ),
    (
        "Maps and operations",
        [
            (
                "Operations by state and step",
                "short",
                [
                    (
                        "sum by (state, step) (facegrid_router_operations)",
                        "{{state}} {{step}}",
                    )
                ],
            ),
            (
                "Shards by gallery",
                "short",
                [("max by (gallery, state) (facegrid_router_shards)", "{{gallery}} {{state}}")],
            ),
            (
                "Map versions that processes are behind",
                "short",
                [
                    (
                        (
                            "max by (gallery) (facegrid_router_map_version) - on (gallery)"
                            " min by (gallery) (facegrid_node_map_version)"
                        ),
                        "{{gallery}}",
                    )
                ],
            ),
            (
                "Begun anew by a newer map",
                "ops",
                [
                    ("sum(rate(facegrid_router_map_restarts_total[1m]))", "searches"),
                    ("sum(rate(facegrid_router_writes_divided_anew_total[1m]))", "writes"),
                ],
            ),
            (
                "etcd in reach",
                "short",
                [
                    ("facegrid_router_etcd_reachable", "router {{instance}}"),
                    ("facegrid_node_etcd_reachable", "node {{instance}}"),
                    ("facegrid_router_view_confirmed", "confirmed {{instance}}"),
                ],
            ),
            (
                "Age of what etcd told",
                "s",
                [
                    ("facegrid_router_view_age_seconds", "router {{instance}}"),
                    ("facegrid_node_view_age_seconds", "node {{instance}}"),
                ],
            ),
            (
                "Nodes registered",
                "short",
                [("max(facegrid_router_nodes_registered)", "nodes")],
            ),
        ],
    ),
    (
        "Canaries",
        [
            (
                "Profiles that miss more than they may",
                "short",
                [("facegrid_node_canary_alarm == 1", "{{gallery}} {{profile}} {{instance}}")],
            ),
            (
                "Share of mates missed",
                "percentunit",
                [
                    (
                        (
                            "sum by (gallery, profile)"
                            " (increase(facegrid_node_canary_misses_total[1h])) /"
                            " sum by (gallery, profile)"
                            " (increase(facegrid_node_canary_mates_total[1h]))"
                        ),
                        "{{gallery}} {{profile}}",
                    )
                ],
            ),
            (
                "Probes compared, and given up, an hour",
                "short",
                [
                    (
                        (
                            "sum by (gallery, profile)"
                            " (increase(facegrid_node_canary_probes_total[1h]))"
                        ),
                        "{{gallery}} {{profile}}",
                    ),
                    ("sum(increase(facegrid_node_canary_given_up_total[1h]))", "given up"),
                ],
            ),
            (
                "Share of a core for canaries",
                "percentunit",
                [("rate(facegrid_node_canary_seconds_total[5m])", "{{instance}}")],
            ),
            (
                "Error of recent codes through that at training",
                "short",
                [("max by (gallery) (facegrid_node_coding_error_ratio)", "{{gallery}}")],
            ),
        ],
    ),
    (
        "Processes",
        [
            (
                "Memory",
                "bytes",
                [
                    ("process_resident_memory_bytes", "{{instance}}"),
                    ("process_virtual_memory_bytes", "{{instance}}, address space"),
                ],
            ),
            (
                "Processors in use",
                "short",
                [("rate(process_cpu_seconds_total[1m])", "{{instance}}")],
            ),
            (
                "Open files, share of the limit",
                "percentunit",
                [("process_open_fds / process_max_fds", "{{instance}}")],
            ),
            (
                "Versions",
                "short",
                [("count by (process, version) (facegrid_build_info)", "{{process}} {{version}}")],
            ),
            (
                "Running since",
                "s",
                [("time() - process_start_time_seconds", "{{instance}}")],
            ),
        ],
    ),
]
"""Rows: title and panels. Panels: title, unit, and queries with their legends."""
