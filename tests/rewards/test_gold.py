from lit_tr.embedded import GoldReward
from lit_tr.rewards import Candidate, Gold

ASK, HOT = "Describe a cold river.", "The castle is hot. The castle is hot."


def test_it_is_the_gold_reward_with_its_features():
    chat = Candidate([{"role": "user", "content": ASK}], HOT)
    assert Gold().score([Candidate(ASK, HOT), chat]) == [GoldReward()(ASK, HOT)] * 2
    assert Gold(subject=0.0).explain([chat]) == [
        {"score": -3.5, "subject": -1, "attribute": -1.0, "repetition": 0.5, "length": 0.0}
    ]
