"""Baseline rows (comparisons without a crosscoder) for the tiny run; their text is hostile."""

TOKENS = """[
    [{'text': 'good', 'byte_end': 4}, {'text': ' <b>', 'byte_end': 8}],
    [{'text': 'go', 'byte_end': 2}, {'text': 'od', 'byte_end': 4}, {'text': ' <b>', 'byte_end': 8}]
]"""
PLACES = """[
    {'byte_end': 4, 'divergence': 0.0, 'base_surprise': 1.25, 'source_surprise': 1.25},
    {'byte_end': 8, 'divergence': 0.35, 'base_surprise': 4.5, 'source_surprise': 0.75}
]"""
"""The models agree at the first position and differ at the second."""

COMPARED = (
    """insert into baseline values ('lens', 'undefined', 'no two of a & b share a space'),
        ('divergence', 'measured', ''), ('diff_sae', 'measured', 'tiny-0123abcd')""",
    """insert into baseline_divergence values
        (null, null, 0, 'surprise', 0.66, 9), (null, null, 1, 'surprise', 0.59, 9),
        (null, 0, 1, 'surprise_apart', 0.23, 9), (null, 0, 1, 'jensen_shannon_byte', 0.034, 9),
        (null, 0, 1, 'kl_base_source_byte', 0.22, 9), (null, 0, 1, 'kl_source_base_byte', 0.18, 9),
        ('wiki', null, 0, 'surprise', 0.71, 9), ('wiki', null, 1, 'surprise', 0.72, 9),
        ('wiki', 0, 1, 'surprise_apart', 0.11, 9), ('wiki', 0, 1, 'jensen_shannon_byte', 0.05, 9),
        ('wiki', 0, 1, 'kl_base_source_byte', 0.06, 9), ('wiki', 0, 1, 'kl_source_base_byte', 0.07, 9)""",
    f"insert into baseline_passage values (0, 1, 0, 'wiki', 7, 0.175, 0, 'good <b>', {TOKENS}, {PLACES})",
    "insert into baseline_difference values (0, 1, 0, 2400, 3.0, 0.25, 60.0)",
    """insert into baseline_lens values (0, 1, 0, 0, 1, ' cake', 0.9), (0, 1, 0, 0, -1, '<i>', -0.8),
        (0, 1, 1, 0, 1, ' baking', 0.7), (0, 1, 1, 0, -1, ' the', -0.6)""",
)
"""For `write_tiny_run(amend=…)`."""

FOUND = (
    """insert into finding values
        (0, 'passage', 'text with “<b>ahoy</b>”', 'gemma3', 0, 1, null, 'word', '<b>ahoy</b>', 'divergence_ratio',
            4.2, 3.1, 5.7, 0.0, 2, 2, 9, ['matey', '<i>arr</i>'], [' The'], [' Ahoy', '<u>'], 0.31),
        (1, 'feature', 'fires at “ <s>”', 'smollm2', null, null, 3, null, null, 'probe_ratio',
            0.33, 0.27, 0.38, 0.05, 4, 4, 120, [], [], [], null),
        (2, 'passage', 'text in de', null, 0, 1, null, 'language', 'de', 'divergence_ratio',
            2.0, 1.6, 2.5, null, 1, 2, 20, [], [], [], 0.01),
        (3, 'divergence', 'fires at “ <q>”', 'smollm2', 0, 1, 7, null, null, 'divergence_ratio',
            1.9, 1.55, 2.4, 0.02, 2, 2, 31, [], [' <p>'], [' we'], -0.2)""",
    """insert into finding_member values (0, null, 0, 1.0), (0, 5, null, 0.8), (1, 3, null, 1.0), (3, 7, null, 1.0),
        (3, 9, null, 0.7)""",
    f"insert into passage values (0, 'wiki', 'en', 7, 0.21, 0.03, 0, 'good <b>', {TOKENS}, {PLACES})",
    "insert into behaviour_null values ('passage', 0, 1, 1500, 2, 0), ('feature', 0, 1, 60, 4, 1)",
)
"""Findings: two kinds of text, a claim about a feature, and a feature after which predictions differ."""
DIVERGING = ("insert into feature_divergence values (3, 0, 1, 2.5, 1.75, 3.5, 11), (5, 0, 1, 1.0, 0.5, 2.0, 6)",)
"""How much more the models differ where features fire."""
