-- How text is cut into the words that searches compare. The explorer cuts what people type by the same macros.
-- Scripts without spaces between words are cut into pairs of characters (`singles` adds each character alone);
-- accents of Latin letters do not count. A token without a letter or digit is a word of its own.
create or replace temp macro unspaced() as '\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}';
create or replace temp macro pairs(run, singles) as list_concat(
    case when singles or length(run) = 1 then list_transform(range(1, length(run) + 1), lambda i: run[i:i]) else [] end,
    list_transform(range(1, length(run)), lambda i: run[i:i + 1])
);
create or replace temp macro folded(run) as
    case when regexp_full_match(run, '[\p{Latin}\p{N}\p{M}]+') then strip_accents(run) else run end;
create or replace temp macro words(written, singles) as flatten(list_transform(
    regexp_extract_all(
        regexp_replace(lower(nfc_normalize(written)), '([' || unspaced() || ']+)', ' \1 ', 'g'), '[\p{L}\p{N}\p{M}]+'
    ),
    lambda run: case when regexp_matches(run, '^[' || unspaced() || ']') then pairs(run, singles) else [folded(run)] end
));
create or replace temp macro words_or_sign(written, singles) as case
    when regexp_matches(written, '[\p{L}\p{N}]') then words(written, singles)
    when trim(written, e' \t\r\n') = '' then []
    else [lower(trim(written, e' \t\r\n'))]
end;
