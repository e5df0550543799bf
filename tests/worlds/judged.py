"""Evidence for the tiny run: SQL for `write_tiny_run(amend=JUDGED)` that judges every claim of it.

Of the claims of each owner the first living one is supported and absent, the second refuted as an analogue, the third
undecided because it fired too seldom, the fourth because it is like noise, and all others are supported and weaker.
"""

ORDER = """
    select feature, owner, row_number() over (partition by owner order by feature) as place
    from feature where verdict <> '' and firings > 0
"""
JUDGED = (
    f"create temp table claim as {ORDER}",
    """
    update feature set verdict = case place when 2 then 'refuted' when 3 then 'undecided' when 4 then 'undecided'
            else 'supported' end,
        kind = case place when 1 then 'absent' when 2 then 'analogue' when 4 then 'noise' else 'weaker' end,
        probe_ratio = case place when 1 then 0.05 when 2 then 0.9 else 0.3 end,
        probe_low = case place when 1 then 0.02 when 2 then 0.8 else 0.2 end,
        probe_high = case place when 1 then 0.08 when 2 then 1 else 0.4 end,
        excess = case place when 4 then 0.9 else 3 end,
        excess_low = case place when 4 then 0.8 else 2.5 end,
        excess_high = case place when 4 then 1 else 3.5 end,
        coherence = 0.04, polysemous = true, found_in = 3, looked_in = 4
    from claim where claim.feature = feature.feature
    """,
    """
    insert into evidence
    select * from (
        select feature, 'probe_ratio', probe_ratio, probe_low, probe_high, 0.5, firings,
            case when probe_high <= 0.5 then 'supports' else 'doubts' end
        from feature where probe_ratio is not null
        union all
        select feature, 'excess', excess, excess_low, excess_high, 1.1, firings,
            case when excess_low >= 1.1 then 'supports' else 'doubts' end
        from feature where excess is not null
        union all
        select feature, 'twin', case place when 2 then 0.8 else 0.1 end, null, null, 0.5, 99,
            case place when 2 then 'refutes' else 'silent' end
        from claim
        union all
        select feature, 'firings', case place when 3 then 7 else 900 end, null, null, 100, 7,
            case place when 3 then 'doubts' else 'silent' end
        from claim
        union all
        select feature, 'moon_phase', 0.25, null, null, null, null, 'silent' from claim
    ) order by 1
    """,
    """
    insert into probe
    select f.feature, s.source, case when s.name = f.owner then 0.6 else 0.6 * f.probe_ratio end,
        case when s.name = f.owner then 0.99 else 0.8 end
    from feature f, source s where f.probe_ratio is not null order by f.feature, s.source
    """,
    """
    insert into other_layer
    select f.feature, s.source, l.layer, f.probe_ratio / l.layer, f.probe_low / l.layer, f.probe_high / l.layer
    from feature f, source s, (values (2), (4)) l (layer)
    where f.probe_ratio is not null and s.name <> f.owner order by f.feature, s.source, l.layer
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
    """
    update feature set fdr = case kind when 'absent' then 0.004 else 0.02 end from claim
    where claim.feature = feature.feature and kind in ('absent', 'weaker')
    """,
    """
    insert into evidence
    select feature, 'fdr', fdr, null, null, 0.1, firings, 'silent' from feature where fdr is not null order by 1
    """,
    "insert into calibration values ('spike-in', 'claims', 200), ('spike-in', 'supported', 0.05)",
    """
    insert into null_claims values
        ('noise', 0, 100000, 200, 120, 1, 1.04), ('isotropic', 0, 400000, 128, 120, 2, null),
        ('whitened', 0, 400000, 128, 90, 3, null), ('noise', 1, 100000, 150, 140, 0, 0.98),
        ('isotropic', 1, 400000, 128, 121, 0, null), ('whitened', 1, 400000, 128, 99, 4, null)
    """,
    """
    insert into spike_in values
        ('exclusive', 0, 0.1, 0.01, 8, 1, 1, 0), ('exclusive', 0, 0.4, 0.01, 8, 7, 6, 5),
        ('exclusive', 1, 0.1, 0.01, 8, 2, 1, 1), ('exclusive', 1, 0.4, 0.01, 8, 8, 8, 6),
        ('exclusive', 0, 0.4, 0.001, 8, 4, 3, 2), ('shared', null, 0.4, 0.01, 8, 6, 5, 1)
    """,
)
