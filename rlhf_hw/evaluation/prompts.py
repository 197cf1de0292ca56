"""Prompts to compare two models by, in three languages, and answers to tell a reward model by. All written here."""

from __future__ import annotations

PROMPTS: dict[str, tuple[str, ...]] = {
    "English": (
        "Explain to a child of seven why the sky is blue.",
        "Write four lines about an old lighthouse in winter.",
        "My neighbour plays loud music at night. What should I say to him?",
        "How does a bicycle stay upright while it is moving?",
        "Give me three ideas for a supper with potatoes and eggs.",
        "Which is heavier, a kilogram of feathers or a kilogram of iron, and why?",
    ),
    "Chinese": (
        "请给七岁的孩子解释天空为什么是蓝色的。",
        "写四行关于冬天里一座老灯塔的诗。",
        "我的邻居晚上放很大声的音乐,我应该怎么跟他说?",
        "自行车在行驶时为什么不会倒?",
        "用土豆和鸡蛋做晚饭,请给我三个主意。",
        "一公斤羽毛和一公斤铁哪个更重?为什么?",
    ),
    "Japanese": (
        "空がなぜ青いのか、七歳の子どもに説明してください。",
        "冬の古い灯台について四行の詩を書いてください。",
        "隣の人が夜に大きな音で音楽をかけます。何と言えばよいですか。",
        "自転車は走っているとき、なぜ倒れないのですか。",
        "じゃがいもと卵を使った夕食の案を三つ教えてください。",
        "羽毛一キロと鉄一キロでは、どちらが重いですか。それはなぜですか。",
    ),
}

#: (prompt, a good answer, a bad one)
ANSWERS: tuple[tuple[str, str, str], ...] = (
    (
        "Explain to a child of seven why the sky is blue.",
        "Sunlight is made of many colours. When it meets the air, the blue part is bounced around much more than the others, "
        "so blue light reaches your eyes from everywhere above you.",
        "Because it is. Ask somebody else, I do not talk to children.",
    ),
    (
        "My neighbour plays loud music at night. What should I say to him?",
        "Knock on a quiet afternoon and say that his music keeps you awake, then suggest an hour after which he turns it down. "
        "Most people do not know how far the sound carries.",
        "Music music music neighbour music night night night loud loud.",
    ),
    (
        "How does a bicycle stay upright while it is moving?",
        "When it leans, the front wheel turns to that side by itself and brings the wheels back under the rider. The rider's "
        "small corrections do the rest, and the faster it goes, the easier that is.",
        "Bicycles were invented in the nineteenth century. Cars have four wheels and boats have none.",
    ),
    (
        "Which is heavier, a kilogram of feathers or a kilogram of iron?",
        "Neither: both are one kilogram. The feathers only take up much more room.",
        "The iron, of course, because iron is a metal and metals are always heavier.",
    ),
)
