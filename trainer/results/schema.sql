-- The results of one run. Every column has a comment with its meaning and unit; the explorer shows them.
-- A file is written once, published under a name that carries its content hash, and never changed.

create table run (
    run_id text not null,
    name text not null,
    created_at timestamp not null,
    recipe_json text not null,
    versions_json text not null,
    schema_version integer not null default 6
);
comment on table run is 'The run that made this file; one row.';
comment on column run.run_id is 'The run''s id: its name and the short hash of its recipe.';
comment on column run.name is 'The recipe''s name.';
comment on column run.created_at is 'When the results were published, UTC.';
comment on column run.recipe_json is 'The resolved recipe with all defaults, as JSON.';
comment on column run.versions_json is 'Versions of Crossdiff, Python and the libraries that can affect results, as JSON.';
comment on column run.schema_version is 'Version of this schema; an explorer refuses any other than its own.';

create table source (
    source tinyint not null,
    name text not null,
    model text not null,
    revision text,
    hookpoint text not null,
    layer integer,
    width integer not null,
    scale double not null,
    space integer
);
comment on table source is 'The sources of activations that were compared, in order.';
comment on column source.source is 'Index of the source, from 0.';
comment on column source.name is 'The source''s name in the recipe.';
comment on column source.model is 'The model as the recipe names it.';
comment on column source.revision is 'The model''s revision: a commit or the SHA-256 of its file.';
comment on column source.hookpoint is 'Hookpoint in the model at which activations are read.';
comment on column source.layer is 'Layer of the hookpoint, from 0; null when a store without models was used.';
comment on column source.width is 'Dimensions of an activation vector.';
comment on column source.scale is 'Factor from raw activations, with the mean subtracted, to normalised activations.';
comment on column source.space is 'Index of the activation space: directions apply across the sources of one space, and latent scaling compares them; null for a source that shares its space with no other.';

create table feature (
    feature integer not null,
    group_name text not null,
    content_hash text not null,
    owner text not null,
    firings bigint not null,
    density double not null,
    max_activation double not null,
    mean_activation double,
    template_share double,
    first_token_share double,
    documents integer,
    main_corpus text,
    main_corpus_share double,
    verdict text not null,
    fdr double,
    score double,
    main_language text,
    main_language_share double,
    coherence double,
    polysemous boolean,
    probe_ratio double,
    probe_low double,
    probe_high double,
    excess double,
    excess_low double,
    excess_high double,
    kind text,
    found_in integer,
    looked_in integer
);
comment on table feature is 'One row per feature of the dictionary.';
comment on column feature.feature is 'Index of the feature, from 0, as in URLs.';
comment on column feature.group_name is 'The crosscoder group the feature belongs to.';
comment on column feature.content_hash is 'Hash of the decoder directions; independent of the index.';
comment on column feature.owner is 'shared, a source''s name, names joined by +, or other (neither shared nor exclusive by the thresholds of the recipe).';
comment on column feature.firings is 'Rows on which the feature fired, of the rows analysed.';
comment on column feature.density is 'Firings per row analysed, 0 to 1.';
comment on column feature.max_activation is 'Largest activation over the rows analysed, unscaled; the unit of steering strength.';
comment on column feature.mean_activation is 'Mean activation over the rows where it fired; null when it never fired.';
comment on column feature.template_share is 'Share of its firings on chat-template positions, 0 to 1; null when it never fired.';
comment on column feature.first_token_share is 'Share of its firings in the first eight rows of a sequence, 0 to 1; null when it never fired.';
comment on column feature.documents is 'Documents in which it fired.';
comment on column feature.main_corpus is 'Corpus part with most of its firings; null when it never fired.';
comment on column feature.main_corpus_share is 'Share of its firings in that corpus part, 0 to 1.';
comment on column feature.verdict is 'supported, refuted or undecided: what the evidence says about the claim that only its owner has it; untested where one source owns it and claims are made of residual dictionaries'' features only; empty for features without a claim. The rule is in trainer/analysis/claims/verdict.py.';
comment on column feature.fdr is 'Expected share of noise among the owner''s claims at least as strong, 0 to 1: claims that the noise null of `crossdiff calibrate` gives with a lower bound of excess as large, over those of this run, both among claims that the probes support; null without calibration, and for claims weaker than any of those.';
comment on column feature.score is 'Score of the default ranking: larger is more defensible; comparable within one run. Supported claims are from 3 to 4, undecided ones from 2 to 3, refuted ones from 1 to 2, each by the smallest margin of its evidence from the thresholds (a half at a threshold), features without a claim up to 1.';
comment on column feature.main_language is 'Language of most of its firings, as an ISO 639 code, und if undetermined; null when it never fired.';
comment on column feature.main_language_share is 'Share of its firings in that language, 0 to 1.';
comment on column feature.coherence is 'Similarity of the activations at two of its firings from different documents: mean inner product over the mean squared norm of all rows, centred, weighted by activation, in the source of its owner where it is largest. 0 for unrelated rows; null when it fired in too few documents.';
comment on column feature.polysemous is 'Warning that the feature may be polysemous: coherence is below 0.07; null without coherence.';
comment on column feature.probe_ratio is 'How well the sources outside the owner tell where it fires, over how well the owner does: R-precision of the best linear probe outside over that of the best inside. near 0 if the others tell nothing (by chance a probe finds as large a share as the feature''s density), 1 if they tell as much; null for features without a claim and with too few firings.';
comment on column feature.probe_low is 'Lower bound of the 90 % interval of probe_ratio, over documents.';
comment on column feature.probe_high is 'Upper bound of the 90 % interval of probe_ratio, over documents.';
comment on column feature.excess is 'Energy (sum of its squared activations) over the energy to be expected if the owner held, beyond what the others predict linearly, nothing but noise, estimated by reflecting what they do not predict: about 1 for a direction that means nothing; null without a claim.';
comment on column feature.excess_low is 'Lower bound of the 90 % interval of excess, over documents.';
comment on column feature.excess_high is 'Upper bound of the 90 % interval of excess, over documents.';

comment on column feature.kind is 'Kind of difference that is claimed: absent, the other sources tell next to nothing of the feature; weaker, they tell a part, or that is not ruled out; analogue, a feature of another owner fires on the same rows; noise, it fires hardly more strongly than noise would make it. Null for features without a claim, for those that the probes refute, and where the claim could not be tested.';
comment on column feature.found_in is 'Other trainings in which a feature of the same owner has the same direction and fires on the same rows: those of the residual dictionaries behind it, and other runs of the same comparison; null when there are none.';
comment on column feature.looked_in is 'Other trainings with features of the same owner.';

create table feature_source (
    feature integer not null,
    source tinyint not null,
    decoder_norm double not null,
    encoder_norm double not null,
    norm_share double not null,
    relative_norm double,
    nu_reconstruction double,
    nu_error double,
    readout double,
    cosine double,
    beta_reconstruction double,
    beta_error double
);
comment on table feature_source is 'Norms, readout and latent scaling of a feature in one source.';
comment on column feature_source.feature is 'Index of the feature.';
comment on column feature_source.source is 'Index of the source.';
comment on column feature_source.decoder_norm is 'Norm of the decoder direction, in normalised space; 0 when the feature does not write to this source.';
comment on column feature_source.encoder_norm is 'Norm of the encoder direction, in normalised space; 0 when the feature does not read this source.';
comment on column feature_source.norm_share is 'This source''s decoder norm over the sum of all sources'' decoder norms, 0 to 1.';
comment on column feature_source.relative_norm is '0.5 (1 + (norm here - norm in the other source) / larger of both), 0 to 1: 1 if the feature writes here only, 0 if in the other only (the sign of arXiv 2504.02922); null unless there are two sources.';
comment on column feature_source.nu_reconstruction is 'Latent scaling, reconstruction target: this source''s beta over that of the source where the feature''s direction is longest. High where other features reconstruct it (latent decoupling); null where no space is shared.';
comment on column feature_source.nu_error is 'Latent scaling, error target: this source''s beta over that of the source where the feature''s direction is longest. High where the dictionary missed it (complete shrinkage); null where no space is shared.';
comment on column feature_source.readout is 'How well this source''s activations alone predict the feature''s activation linearly: explained variance on documents held out from the fit; below 0 is worse than the mean; null when it fired fewer than 20 times in either fold.';
comment on column feature_source.cosine is 'Cosine of the decoder direction here with the one in the source where it is longest; null there, for other widths, and where the feature does not write.';
comment on column feature_source.beta_reconstruction is 'How much of the feature''s longest direction, times its activation, is in this source''s reconstruction (least squares); null where no space is shared.';
comment on column feature_source.beta_error is 'The same for this source''s reconstruction error without the feature''s own contribution; null where no space is shared.';

create table sequence (
    sequence integer not null,
    document integer not null,
    corpus text not null,
    held_out boolean not null,
    text text not null,
    tokens struct("text" text, byte_end integer)[][] not null
);
comment on table sequence is 'Sequences of text that the models read and that contain a stored firing.';
comment on column sequence.sequence is 'Index of the sequence in the activation store.';
comment on column sequence.document is 'Index of the document that the sequence is a piece of.';
comment on column sequence.corpus is 'Corpus part the document comes from.';
comment on column sequence.held_out is 'Whether it was held out from training.';
comment on column sequence.text is 'The text, as UTF-8.';
comment on column sequence.tokens is 'Per source, its tokens in order: text and the byte of the sequence''s text where each ends.';

create table firing (
    feature integer not null,
    rank integer not null,
    bucket text not null,
    sequence integer not null,
    corpus text not null,
    peak float not null,
    peak_byte_end integer not null,
    byte_start integer not null,
    text text not null,
    tokens struct("text" text, byte_end integer)[][] not null,
    activations struct(byte_end integer, activation float)[] not null
);
comment on table firing is 'Selected firings of each feature with their contexts, sorted by feature, bucket and rank.';
comment on column firing.feature is 'Index of the feature.';
comment on column firing.rank is 'Rank within the bucket, from 0, strongest first.';
comment on column firing.bucket is 'top: the strongest, one per sequence; q1 to q5: a uniform sample from each fifth of the range up to the largest activation, weakest first; random: any firing.';
comment on column firing.sequence is 'Index of the sequence that the window lies in.';
comment on column firing.corpus is 'Corpus part of that sequence.';
comment on column firing.peak is 'Activation at the row the window is centred on, unscaled.';
comment on column firing.peak_byte_end is 'Byte of the sequence''s text where that row ends.';
comment on column firing.byte_start is 'Byte of the sequence''s text where the window begins.';
comment on column firing.text is 'The window''s text.';
comment on column firing.tokens is 'Per source, the window''s tokens: text and byte of the sequence''s text where each ends.';
comment on column firing.activations is 'The feature''s activation at every row of the window where it fired, by the byte where the row ends.';

create table example (
    feature integer not null,
    rank integer not null,
    shown text not null
);
comment on table example is 'The ten strongest stored firings of each feature, in a table of its own so that lists of features read little. Filled from firing and logit when the file is finished.';
comment on column example.feature is 'Index of the feature.';
comment on column example.rank is 'Rank in the bucket top, from 0.';
comment on column example.shown is 'JSON with peak, peak_byte_end, byte_start and text of the firing; ends: bytes where tokens of the feature''s owner end (of the first source of its name, of source 0 for shared and other); fired: pairs of the byte where a row ends and the activation there; promoted: at rank 0, the five tokens that the feature promotes most in that source.';

create table search_word (
    word text not null,
    feature integer not null,
    field text not null,
    weight float not null,
    rank integer
);
comment on table search_word is 'The words that features are found by, sorted by word; cut as in trainer/results/words.sql. Filled from firing and logit when the file is finished.';
comment on column search_word.word is 'The word in lower case, a pair of characters of a script without spaces, or a token without letters.';
comment on column search_word.feature is 'Index of the feature.';
comment on column search_word.field is 'peak: the feature fires on the word, or on a token of it, in one of its ten strongest contexts; promoted, suppressed: by its logit effects in any source; context: one of those contexts has it. Words in the contexts of more than a quarter of the features are left out there.';
comment on column search_word.weight is 'How much the word tells of the feature, 0 to 4: how often the feature has it times how rare it is among features, times the weight of the field (4, 4, 1.5, 1).';
comment on column search_word.rank is 'Rank in the bucket top of the strongest context with the word; null for promoted and suppressed ones.';

create table histogram (
    feature integer not null,
    low double not null,
    high double not null,
    count bigint not null
);
comment on table histogram is 'Histogram of each feature''s activations where it fired; empty bins are left out.';
comment on column histogram.feature is 'Index of the feature.';
comment on column histogram.low is 'Lower edge of the bin, unscaled activation.';
comment on column histogram.high is 'Upper edge of the bin, unscaled activation.';
comment on column histogram.count is 'Firings in the bin.';

create table logit (
    feature integer not null,
    source tinyint not null,
    rank integer not null,
    token text not null,
    effect float not null
);
comment on table logit is 'Tokens that a feature''s decoder direction promotes or suppresses in one source, through its final norm and unembedding.';
comment on column logit.feature is 'Index of the feature.';
comment on column logit.source is 'Index of the source.';
comment on column logit.rank is '1, 2, ... for the most promoted tokens, -1, -2, ... for the most suppressed.';
comment on column logit.token is 'The token''s text.';
comment on column logit.effect is 'Effect on the logit of a direction of length one in raw space, before the final norm''s division; comparable within one source.';

create table neighbour (
    feature integer not null,
    other integer not null,
    kind text not null,
    cosine double,
    correlation double
);
comment on table neighbour is 'Pairs of related features: candidates for one concept split in two.';
comment on column neighbour.feature is 'Index of the feature.';
comment on column neighbour.other is 'Index of the other feature.';
comment on column neighbour.kind is 'twin: of another owner and firing on the same rows; similar: of the same owner; coactive: any other pair whose activations correlate.';
comment on column neighbour.cosine is 'Cosine of the decoder directions, in the source, of those both write to, where it is largest; null when there is none.';
comment on column neighbour.correlation is 'Correlation of both activations over the rows analysed, -1 to 1.';

create table agreement (
    feature integer not null,
    other integer not null,
    bin tinyint not null,
    other_bin tinyint not null,
    rows bigint not null
);
comment on table agreement is 'Joint histogram of the activations of every feature with a claim and its strongest twin; empty cells are left out.';
comment on column agreement.feature is 'Index of the feature with the claim.';
comment on column agreement.other is 'Index of its strongest twin.';
comment on column agreement.bin is '0: the feature does not fire; 1 to 5: the fifth of its range up to its largest activation, weakest first.';
comment on column agreement.other_bin is 'The same for the twin.';
comment on column agreement.rows is 'Number of rows in both bins; where one bin is 0, only the other feature fires.';

create table feature_corpus (
    feature integer not null,
    corpus text not null,
    firings bigint not null
);
comment on table feature_corpus is 'Firings of each feature by corpus part; parts without firings are left out.';
comment on column feature_corpus.feature is 'Index of the feature.';
comment on column feature_corpus.corpus is 'Corpus part.';
comment on column feature_corpus.firings is 'Rows of that part on which the feature fired.';

create table feature_language (
    feature integer not null,
    language text not null,
    firings bigint not null
);
comment on table feature_language is 'Firings of each feature by the language of the sequence; languages without firings are left out.';
comment on column feature_language.feature is 'Index of the feature.';
comment on column feature_language.language is 'ISO 639 code of the main language of a sequence, und if undetermined.';
comment on column feature_language.firings is 'Rows of such sequences on which the feature fired.';

create table text_part (
    kind text not null,
    name text not null,
    rows bigint not null,
    sequences integer not null
);
comment on table text_part is 'Rows and sequences of each corpus part and language, to compare a feature''s firings with.';
comment on column text_part.kind is 'corpus or language.';
comment on column text_part.name is 'Name of the corpus part, or code of the language.';
comment on column text_part.rows is 'Rows analysed.';
comment on column text_part.sequences is 'Sequences with at least one of those rows.';

create table evidence (
    feature integer not null,
    test text not null,
    value double not null,
    low double,
    high double,
    threshold double,
    n bigint,
    says text not null
);
comment on table evidence is 'Outcome of each test of the claim that only its owner has a feature; no rows for features without a claim.';
comment on column evidence.feature is 'Index of the feature.';
comment on column evidence.test is 'probe_ratio: how well the other sources tell where it fires, over how well the owner does; other_layers: the largest probe ratio with another layer of the other models; excess: energy over that which noise would give; fdr: expected share of noise among claims as strong; twin: correlation with a feature of another owner; nu_error, nu_reconstruction: latent scaling, the largest of the other sources; own_probe: R-precision of the owner''s probe; firings; documents; density; template_share; first_token_share; found_again: share of the other trainings that have the feature.';
comment on column evidence.value is 'The measured value.';
comment on column evidence.low is 'Lower bound of the value''s 90 % interval over documents; null when it has none.';
comment on column evidence.high is 'Upper bound of the value''s 90 % interval over documents; null when it has none.';
comment on column evidence.threshold is 'Threshold of the test; null when it has none.';
comment on column evidence.n is 'Number of firings or runs behind the value; null where that does not apply.';
comment on column evidence.says is 'supports; refutes; doubts, which prevents the verdict supported; or silent, which has no effect.';

create table evaluation (
    source tinyint,
    measure text not null,
    value double not null
);
comment on table evaluation is 'Measures of the crosscoder on held-out rows.';
comment on column evaluation.source is 'Index of the source; null for measures of the whole.';
comment on column evaluation.measure is 'What was measured; a dot separates a group''s name.';
comment on column evaluation.value is 'The value.';

create table training_metric (
    step integer not null,
    measure text not null,
    value double not null
);
comment on table training_metric is 'Measures recorded during training.';
comment on column training_metric.step is 'Training step, from 0.';
comment on column training_metric.measure is 'What was measured.';
comment on column training_metric.value is 'The value.';

create table calibration (
    kind text not null,
    measure text not null,
    value double not null
);
comment on table calibration is 'Measures of the run with spike-ins; empty until the run is calibrated.';
comment on column calibration.kind is 'spike-in: concepts planted in the real activations.';
comment on column calibration.measure is 'What was measured.';
comment on column calibration.value is 'The value.';

create table null_claims (
    kind text not null,
    source tinyint not null,
    rows bigint not null,
    claims integer not null,
    judged integer not null,
    supported integer not null,
    excess_95 double
);
comment on table null_claims is 'Claims that are false by construction, and how many of them the rule supports; empty until the run is calibrated.';
comment on column null_claims.kind is 'noise: claims of the same recipe trained on a source that was replaced by what the others predict of it, plus Gaussian noise of the residual''s covariance; isotropic, whitened: random directions of the source, thresholded to fire as often as claimed features do.';
comment on column null_claims.source is 'Index of the source that the claims are about.';
comment on column null_claims.rows is 'Rows that the null was trained on (noise) or judged on.';
comment on column null_claims.claims is 'Number of claims.';
comment on column null_claims.judged is 'Claims with a probe ratio and an excess.';
comment on column null_claims.supported is 'Claims that the rule supports, all of them wrongly.';
comment on column null_claims.excess_95 is '95 % quantile of the excess of the judged claims; null for placebos.';

create table other_layer (
    feature integer not null,
    source tinyint not null,
    layer integer not null,
    probe_ratio double not null,
    probe_low double not null,
    probe_high double not null
);
comment on table other_layer is 'How well other layers of the other sources'' models tell where a claimed feature fires; no rows for claims whose owner is of the same model, and where the models could not be read.';
comment on column other_layer.feature is 'Index of the feature.';
comment on column other_layer.source is 'Index of the source whose model it is.';
comment on column other_layer.layer is 'Layer whose residual stream was probed, counted from 0.';
comment on column other_layer.probe_ratio is 'R-precision of the probe there over that of the best inside the owner, on the same rows.';
comment on column other_layer.probe_low is 'Lower bound of the 90 % interval of probe_ratio, over documents.';
comment on column other_layer.probe_high is 'Upper bound of the 90 % interval of probe_ratio, over documents.';

create table probe (
    feature integer not null,
    source tinyint not null,
    r_precision double not null,
    auc double not null
);
comment on table probe is 'How well a linear probe of each source tells where a claimed feature fires, on documents that the probe was not fitted on.';
comment on column probe.feature is 'Index of the feature.';
comment on column probe.source is 'Index of the source.';
comment on column probe.r_precision is 'Share of firings among the rows that the probe ranks first, as many as there are firings.';
comment on column probe.auc is 'Chance that the probe ranks a row with a firing above one without.';

create table spike_in (
    placement text not null,
    source tinyint,
    amplitude double not null,
    frequency double not null,
    planted integer not null,
    recovered integer not null,
    as_claimed integer not null,
    supported integer not null
);
comment on table spike_in is 'Concepts planted in the real activations, and how many were recovered by training the same recipe on them.';
comment on column spike_in.placement is 'exclusive: planted in one source; shared: in all.';
comment on column spike_in.source is 'Index of the source that has them; null for shared ones.';
comment on column spike_in.amplitude is 'Mean length of what was added, in units of the source''s typical distance from its mean.';
comment on column spike_in.frequency is 'Share of the rows on which each was added.';
comment on column spike_in.planted is 'How many were planted.';
comment on column spike_in.recovered is 'How many are recovered: some feature has the same direction in every source with the concept (cosine at least 0.7) and a correlated activation (at least 0.5).';
comment on column spike_in.as_claimed is 'How many of those features have the owner that the concept was planted for.';
comment on column spike_in.supported is 'How many of those features were judged supported: right for exclusive ones, wrong for shared ones.';

create table coverage (
    corpus text not null,
    source tinyint,
    measure text not null,
    value double not null
);
comment on table coverage is 'How much text survived alignment, per corpus part.';
comment on column coverage.corpus is 'Corpus part.';
comment on column coverage.source is 'Index of the source; null for measures of all.';
comment on column coverage.measure is 'What was counted: documents, sequences, tokens, possible (anchors), anchors, special, outliers, not_finite, plain_chats, kept, documents_over_80.';
comment on column coverage.value is 'The count.';

create table baseline (
    baseline text not null,
    state text not null,
    reason text not null
);
comment on table baseline is 'Comparisons without a crosscoder, and why one was not made; one row per baseline.';
comment on column baseline.baseline is 'lens: activation differences on first tokens; divergence: predictions on the same text; diff_sae: a sparse autoencoder of the difference, trained beside the run.';
comment on column baseline.state is 'measured; undefined: it has no meaning for these sources; off: the recipe leaves it out; impossible: a requirement is missing.';
comment on column baseline.reason is 'Why it was not measured; for a measured diff_sae the id of its run; else empty.';

create table baseline_difference (
    base tinyint not null,
    source tinyint not null,
    position integer not null,
    texts bigint not null,
    norm double not null,
    expected_norm double not null,
    typical_norm double not null
);
comment on table baseline_difference is 'Activation difference lens (arXiv 2510.13900): mean of source minus base over texts, at each of their first tokens; only for sources of one space.';
comment on column baseline_difference.base is 'Index of the source that is subtracted.';
comment on column baseline_difference.source is 'Index of the source it is subtracted from.';
comment on column baseline_difference.position is 'Token of the text, from 0; BOS and other special tokens are not counted.';
comment on column baseline_difference.texts is 'Texts in the mean; chats are left out where there is other text.';
comment on column baseline_difference.norm is 'Norm of the mean difference, in raw activations.';
comment on column baseline_difference.expected_norm is 'Norm expected if the texts'' differences had no common direction.';
comment on column baseline_difference.typical_norm is 'Mean norm of the base''s activations at these tokens.';

create table baseline_lens (
    base tinyint not null,
    source tinyint not null,
    reader tinyint not null,
    position integer not null,
    rank integer not null,
    token text not null,
    effect float not null
);
comment on table baseline_lens is 'Tokens that the mean activation difference promotes or suppresses, through the final norm and the unembedding of either source.';
comment on column baseline_lens.base is 'Index of the source that is subtracted.';
comment on column baseline_lens.source is 'Index of the source it is subtracted from.';
comment on column baseline_lens.reader is 'Index of the source whose final norm and unembedding read it: base or source.';
comment on column baseline_lens.position is 'Token of the text, from 0.';
comment on column baseline_lens.rank is '1, 2, ... for the most promoted tokens, -1, -2, ... for the most suppressed.';
comment on column baseline_lens.token is 'The token''s text.';
comment on column baseline_lens.effect is 'Effect on the logit of the difference scaled to length one, before the final norm''s division; comparable within one reader.';

create table baseline_divergence (
    corpus text,
    base tinyint,
    source tinyint not null,
    measure text not null,
    value double not null,
    n bigint not null
);
comment on table baseline_divergence is 'Divergence of two models'' predictions on the same held-out text.';
comment on column baseline_divergence.corpus is 'Corpus part; null for all together.';
comment on column baseline_divergence.base is 'Index of the first source of a pair; null for a measure of one source.';
comment on column baseline_divergence.source is 'Index of the other source of a pair, or of the single source.';
comment on column baseline_divergence.measure is 'surprise: of one source, nats per byte; surprise_apart: mean distance of both surprises over spans between common token ends, nats per byte; kl_base_source, kl_source_base, jensen_shannon: divergence of the predictions of what comes next, nats, with the suffix _token if over tokens of a common vocabulary, _byte if over the next byte.';
comment on column baseline_divergence.value is 'The mean.';
comment on column baseline_divergence.n is 'Number of spans of text in the mean.';

create table baseline_passage (
    base tinyint not null,
    source tinyint not null,
    rank integer not null,
    corpus text not null,
    sequence integer not null,
    apart double not null,
    byte_start integer not null,
    text text not null,
    tokens struct("text" text, byte_end integer)[][] not null,
    places struct(byte_end integer, divergence float, base_surprise float, source_surprise float)[] not null
);
comment on table baseline_passage is 'Held-out passages on which two models differ most.';
comment on column baseline_passage.base is 'Index of the first source of the pair.';
comment on column baseline_passage.source is 'Index of the other source.';
comment on column baseline_passage.rank is 'Rank among the pair''s passages, from 0, the most different first.';
comment on column baseline_passage.corpus is 'Corpus part.';
comment on column baseline_passage.sequence is 'Index of the sequence in the activation store.';
comment on column baseline_passage.apart is 'Measure of the ranking: mean Jensen-Shannon divergence in nats, or surprise_apart where there is none.';
comment on column baseline_passage.byte_start is 'Byte of the sequence''s text where the passage begins.';
comment on column baseline_passage.text is 'The passage''s text.';
comment on column baseline_passage.tokens is 'Its tokens, of the base and then of the source: text and byte of the sequence''s text where each ends.';
comment on column baseline_passage.places is 'Spans by the byte where each ends: Jensen-Shannon divergence of the predictions at its start, nats, and the surprise of either source over it, nats. Spans on chat templates are left out.';

create table predictability (
    source tinyint not null,
    given text not null,
    corpus text,
    language text,
    band text,
    share double,
    groups integer not null,
    r2 double not null,
    low double not null,
    high double not null
);
comment on table predictability is 'How much of every source the others tell linearly: all others together, and each alone. One row for all text, one per band of principal directions, one per corpus part and one per language; parts with fewer than ten document groups are left out.';
comment on column predictability.source is 'Index of the source that is predicted.';
comment on column predictability.given is 'Names of the sources it is predicted from, joined by +.';
comment on column predictability.corpus is 'The corpus part that is looked at; null for all text.';
comment on column predictability.language is 'The language that is looked at, as an ISO 639 code, und if undetermined; null for all.';
comment on column predictability.band is 'The principal directions of the source that are looked at, by falling variance from 1, such as 2-10; null for all.';
comment on column predictability.share is 'Share of the source''s variance in the band, 0 to 1; null without a band.';
comment on column predictability.groups is 'Document groups that were looked at.';
comment on column predictability.r2 is 'Share of the variance, about the mean of the rows looked at, that an affine map fitted on the other half of the document groups explains: 1 for all of it, below 0 for worse than the mean.';
comment on column predictability.low is 'Lower bound of its 90 % interval over document groups.';
comment on column predictability.high is 'Upper bound of its 90 % interval.';

create table finding (
    finding integer not null,
    kind text not null,
    title text not null,
    owner text,
    base tinyint,
    source tinyint,
    feature integer,
    property text,
    subject text,
    measure text not null,
    effect double not null,
    low double not null,
    high double not null,
    fdr double,
    found_in integer not null,
    looked_in integer not null,
    documents integer not null,
    names text[] not null,
    base_expects text[] not null,
    source_expects text[] not null,
    surprise_gain double
);
comment on table finding is 'What the run reports, whatever method found it, the best supported first.';
comment on column finding.finding is 'Rank, from 0: by how far the evidence is from its threshold, kind divergence after the others.';
comment on column finding.kind is 'feature: a supported claim that one source has a feature; passage: a kind of text on which two models predict differently; divergence: a feature, claimed or not, that other trainings have found and where they do, on text of no such kind.';
comment on column finding.title is 'What it is about, in words.';
comment on column finding.owner is 'For a claim about a feature its owner; for the other kinds the model that expects such text better than the other does, beyond what it does elsewhere; null where neither surely does.';
comment on column finding.base is 'Index of the first source of the pair of models; null for kind feature.';
comment on column finding.source is 'Index of the pair''s other source; null for kind feature.';
comment on column finding.feature is 'Index of the feature; null for kind passage.';
comment on column finding.property is 'What makes text one of a passage theme: word (it has the word), after (the word comes before it in its sequence), corpus, language or place; null for the other kinds.';
comment on column finding.subject is 'The word, the corpus part, the language as an ISO 639 code, or the place; null for the other kinds.';
comment on column finding.measure is 'What effect, low and high are of: probe_ratio (how well the others tell where the feature fires, over how well the owner does) or divergence_ratio (how much farther apart the models'' predictions are there than elsewhere, over the same for the first model and a noised copy of it, of two copies the one with the smaller lower bound).';
comment on column finding.effect is 'The measured value.';
comment on column finding.low is 'Lower bound of its 90 % interval, over documents.';
comment on column finding.high is 'Upper bound of its 90 % interval, over documents.';
comment on column finding.fdr is 'Share of false ones to be expected among findings of this kind that are at least as strong: those that the null gives over those of this run; null without a null.';
comment on column finding.found_in is 'For a feature the trainings that found it; for a passage theme the halves of the documents in which the ratio alone is above the limit, both of them.';
comment on column finding.looked_in is 'Trainings, or halves, that were looked at.';
comment on column finding.documents is 'Documents in which a feature of kind feature fires; for the other kinds the groups of compared documents.';
comment on column finding.names is 'For a passage theme, properties of the same documents, such as words; else empty.';
comment on column finding.base_expects is 'Tokens that the base expects more often there than elsewhere, where the two models disagree.';
comment on column finding.source_expects is 'Tokens that the other source expects more often there than elsewhere, where the two models disagree.';
comment on column finding.surprise_gain is 'By how much better than the base the source expects such text, less the same for other text, nats per byte; null for kind feature.';

create table finding_member (
    finding integer not null,
    feature integer,
    passage integer,
    share double not null
);
comment on table finding_member is 'Features and passages of findings.';
comment on column finding_member.finding is 'Rank of the finding.';
comment on column finding_member.feature is 'Index of the feature that a finding is about, or of one where the two models are surely farther apart than elsewhere, and that fires mostly on the compared documents of the theme, or on text where the finding''s own feature fires; null for passages.';
comment on column finding_member.passage is 'Index of the passage; null for features.';
comment on column finding_member.share is 'Share of the feature''s compared groups of documents that are of the theme, or of its compared spans that are of the finding''s feature; 1 for passages and for that feature.';

create table passage (
    passage integer not null,
    corpus text not null,
    language text not null,
    sequence integer not null,
    apart double not null,
    reference double not null,
    byte_start integer not null,
    text text not null,
    tokens struct("text" text, byte_end integer)[][] not null,
    places struct(byte_end integer, divergence float, base_surprise float, source_surprise float)[] not null
);
comment on table passage is 'Passages that show findings.';
comment on column passage.passage is 'Index of the passage.';
comment on column passage.corpus is 'Corpus part.';
comment on column passage.language is 'Language, as an ISO 639 code, und if undetermined.';
comment on column passage.sequence is 'Index of the sequence in the activation store.';
comment on column passage.apart is 'Mean distance of the two models'' predictions, nats.';
comment on column passage.reference is 'Mean distance of the base''s and its noised copy''s predictions there, nats.';
comment on column passage.byte_start is 'Byte of the sequence''s text where the passage begins.';
comment on column passage.text is 'The passage''s text.';
comment on column passage.tokens is 'Its tokens by source: text and byte of the sequence''s text where each ends.';
comment on column passage.places is 'Spans by the byte where each ends: distance of the predictions at its start, nats, and the surprise of either source over it, nats.';

create table feature_divergence (
    feature integer not null,
    base tinyint not null,
    source tinyint not null,
    ratio double not null,
    low double not null,
    high double not null,
    documents integer not null
);
comment on table feature_divergence is 'How much farther apart two models'' predictions are where a feature fires than elsewhere; no rows for features that fire on too few of the compared documents.';
comment on column feature_divergence.feature is 'Index of the feature.';
comment on column feature_divergence.base is 'Index of the first source of the pair.';
comment on column feature_divergence.source is 'Index of the other source.';
comment on column feature_divergence.ratio is 'The divergence ratio; see finding.measure.';
comment on column feature_divergence.low is 'Lower bound of its 90 % interval over groups of documents.';
comment on column feature_divergence.high is 'Upper bound of its 90 % interval.';
comment on column feature_divergence.documents is 'Groups of documents in which it fires, of those compared.';

create table behaviour_null (
    kind text not null,
    base tinyint not null,
    source tinyint not null,
    candidates integer not null,
    reported integer not null,
    in_null integer not null
);
comment on table behaviour_null is 'What the same rules report between two models, and between the first and a noised copy of it, held against another such copy, where there is nothing to be found.';
comment on column behaviour_null.kind is 'passage: kinds of text; feature: features where they fire.';
comment on column behaviour_null.base is 'Index of the first source of the pair.';
comment on column behaviour_null.source is 'Index of the other source.';
comment on column behaviour_null.candidates is 'Kinds of text, or features, that were looked at.';
comment on column behaviour_null.reported is 'Those whose divergence ratio has a lower bound above the limit.';
comment on column behaviour_null.in_null is 'Those of the base and its noised copy.';
