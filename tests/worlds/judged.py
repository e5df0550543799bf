"""Evidence for the tiny run: SQL for `write_tiny_run(amend=JUDGED)` that judges every claim of it.

Of the claims of each owner the first living one is supported and absent, the second refuted as an analogue, the third
undecided because it fired too seldom, and all others are supported and weaker.
"""

ORDER = """
    select feature, owner, row_number() over (partition by owner order by feature) as place
    from feature where verdict <> '' and firings > 0
"""
JUDGED = (
    f"create temp table claim as {ORDER}",
    """
    update feature set verdict = case place when 2 then 'refuted' when 3 then 'undecided' else 'supported' end,
        kind = case place when 1 then 'absent' when 2 then 'analogue' else 'weaker' end,
        q_value = case place when 1 then 0.004 when 2 then 0.6 when 3 then 0.03 else 0.02 end,
        readout_ratio = case place when 1 then 0.05 when 2 then 0.9 else 0.3 end,
        coherence = 0.04, polysemous = true, found_in = 3, looked_in = 4
    from claim where claim.feature = feature.feature
    """,
    """
    insert into evidence
    select * from (
        select feature, 'readout_contrast', readout_ratio, 0.5, firings,
            case when readout_ratio <= 0.5 then 'supports' else 'doubts' end
        from feature where readout_ratio is not null
        union all
        select feature, 'q_value', q_value, 0.05, 1024, case when q_value <= 0.05 then 'supports' else 'silent' end
        from feature where q_value is not null
        union all
        select feature, 'twin', case place when 2 then 0.8 else 0.1 end, 0.5, 99,
            case place when 2 then 'refutes' else 'silent' end
        from claim
        union all
        select feature, 'firings', case place when 3 then 7 else 900 end, 100, 7,
            case place when 3 then 'doubts' else 'silent' end
        from claim
        union all
        select feature, 'moon_phase', 0.25, null, null, 'silent' from claim
    ) order by 1
    """,
    """
    insert into agreement
    select c.feature, n.other, bin, other_bin, 10 * bin + other_bin + 1
    from claim c join neighbour n on n.feature = c.feature and n.kind = 'twin', range(6) a(bin), range(6) b(other_bin)
    where bin <> 3 order by c.feature
    """,
    "insert into text_part values ('corpus', 'wiki', 240000, 4), ('corpus', 'chats', 160000, 2)",
    "insert into text_part values ('language', 'en', 300000, 5), ('language', 'de', 100000, 1)",
    "insert into feature_corpus select feature, 'wiki', firings // 2 + 1 from feature where firings > 0 order by 1",
    "insert into feature_language select feature, 'de', firings from feature where firings > 0 order by 1",
)
CALIBRATED = (
    *JUDGED,
    "insert into calibration values ('null', 'claims', 200), ('null', 'supported', 0.005), ('null', 'refuted', 0.9)",
    """
    insert into spike_in values
        ('exclusive', 0, 0.1, 0.01, 8, 1, 1, 0), ('exclusive', 0, 0.4, 0.01, 8, 7, 6, 5),
        ('exclusive', 1, 0.1, 0.01, 8, 2, 1, 1), ('exclusive', 1, 0.4, 0.01, 8, 8, 8, 6),
        ('exclusive', 0, 0.4, 0.001, 8, 4, 3, 2), ('shared', null, 0.4, 0.01, 8, 6, 5, 1)
    """,
)
