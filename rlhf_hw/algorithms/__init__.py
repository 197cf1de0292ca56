"""The arithmetic of RLHF as pure functions: tensors in, tensors out. Imports torch alone.

`masked` statistics over real tokens · `kl` divergence from the reference and its coefficient ·
`rewards` per-token rewards and score shaping · `advantages` GAE · `losses` policy, value, reward-model, token.

Glossary of tensor names and conventions, used in every docstring here and by the code that calls it.

Dimensions
    B  sequences in a batch      R  response tokens, padded      V  vocabulary entries
    ... any leading dimensions   W  processes

Tensors
    mask           [B, R]     bool or float, nonzero where the response token is real. Responses start at
                              column 0 and are right padded. EOS, where one was sampled, is a real token
    logits         [..., V]   unnormalised log-probabilities, already divided by the sampling temperature
    logprobs       [B, R]     log-probability (nats) the policy gives the sampled token
    old_logprobs   [B, R]     the same, by the policy that sampled the response
    ref_logprobs   [B, R]     the same, by the frozen reference policy
    kl             [B, R]     per-token estimate (nats) of KL(policy || reference)
    scores         [B]        what the reward model or reward function gives a whole response
    rewards        [B, R]     -kl_coef * kl, plus the score at the last real token
    values         [B, R]     values[:, t] is the critic's forecast of the return from token t on, made
                              before token t is seen (read at the position that predicts token t)
    old_values     [B, R]     the values at sampling time
    advantages     [B, R]     GAE of rewards and old_values
    returns        [B, R]     advantages + old_values: the critic's target
    ratio          [B, R]     exp(logprobs - old_logprobs)
    chosen, rejected [B]      reward-model scores of the two answers of each pair

Padding
    Whatever stands in padding (garbage, inf, NaN) changes no output and gets zero gradient; outputs of shape
    [B, R] are 0 there, except those of `kl`, which sees no mask.

Precision
    bfloat16 and float16 inputs are computed, and returned, in float32; float64 stays float64.
"""
