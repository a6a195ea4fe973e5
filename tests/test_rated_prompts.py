"""Which prompts are similar, and the pairs that are made of them."""

from tiny import EOS

from rlhf_core.rated_prompts import RatedPrompt, contrasting_pairs, with_similar_prompts


def prompt_of(ids: list[int]) -> RatedPrompt:
    return RatedPrompt(ids, [[7, EOS], [3, EOS]], [1.0, -1.0], [9.0, -9.0], [(0, 1, 1.0, 18.0)])


def test_the_most_similar_prompt_shares_most_but_not_all() -> None:
    same = [2, 2, 3]  # the same tokens as the first: nothing tells the two apart
    prompts = [prompt_of(ids) for ids in ([2, 3], same, [2, 3, 4, 5], [9], [4, 9, 11])]
    similar = [prompt.similar_prompt_ids for prompt in with_similar_prompts(prompts, 6)]
    assert similar[:2] == [[2, 3, 4, 5]] * 2  # 2 of 4 shared
    assert similar[2] in ([2, 3], same)
    assert similar[3:] == [[4, 9, 11], [9]]  # 1 of 3 shared
    short = [prompt.similar_prompt_ids for prompt in with_similar_prompts(prompts, 5)]
    assert short[:2] == [None, None]  # 4 tokens and a text of 2
    assert with_similar_prompts(prompts[:1], 6)[0].similar_prompt_ids is None


def test_demonstrations_are_contrasted_with_those_of_the_most_similar_prompts() -> None:
    first, same, near, far = [2, 3], [3, 2, 2], [2, 3, 4], [9, 10]
    texts = [[5, EOS], [6, EOS], [7, EOS], [8, EOS]]
    pairs = contrasting_pairs([first, same, near, far], texts, num_pairs=60, max_tokens=9, seed=0)
    assert len(pairs) == 60
    seen = {(tuple(p.prompt_ids), tuple(map(tuple, p.response_ids))) for p in pairs}
    # `same` has the tokens of `first`, so nothing tells them apart; `far` shares nothing.
    expected = [(first, 0, 2), (same, 1, 2), (near, 2, 0), (near, 2, 1)]
    assert seen == {(tuple(p), (tuple(texts[a]), tuple(texts[b]))) for p, a, b in expected}
    assert all(p.pairs == [(0, 1, 1.0, 0.0)] for p in pairs)
    # What does not fit is left out, and where nothing can be made the search ends.
    assert {tuple(p.prompt_ids) for p in contrasting_pairs(
        [first, near], texts[:2], num_pairs=4, max_tokens=4, seed=0
    )} == {(2, 3)}  # fmt: skip
    # What is a demonstration of both prompts is no fault in either.
    both = [[5, EOS], [5, EOS]]
    assert contrasting_pairs([first, near], both, num_pairs=4, max_tokens=9, seed=0) == []
    assert contrasting_pairs([first, same], texts[:2], num_pairs=4, max_tokens=9, seed=0) == []
    assert contrasting_pairs([], [], num_pairs=4, max_tokens=9, seed=0) == []
