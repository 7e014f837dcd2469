#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The demo model's corpus: small documents from a grammar, with facts that must be remembered.

    corpus.py BYTES SEED > text.txt

Every document has a cast, an inventory and a map. Later sentences can only be predicted by looking back: who holds
how many of what, how far two places are apart, what a list contained, who said a sentence. So a model has something to learn beyond
word frequencies, and a damaged key/value cache raises its loss.
"""
import random
import sys

FIRST = ("Mara Tobin Elsi Jorun Pell Anka Bram Sefa Ludo Wenna Karst Odile Finn Greta Hale Ines Jasper Kaya Lorne Mirel "
         "Nils Orla Piet Quill Rosa Sten Thea Ulf Vera Willem Yara Zeno").split()
THING = ("lamp rope kettle basket hammer candle blanket bucket mirror ladder drum saddle barrel apple pear plum book map coin "
         "key button ribbon knife spoon bell feather stone shell").split()
COLOUR = "red blue green grey white black yellow brown silver golden".split()
PLACE = ("mill harbour chapel market bridge orchard quarry lighthouse tavern school library station meadow castle well "
         "bakery forge garden ferry tower").split()
WEATHER = ["it rained all morning", "a cold wind came from the sea", "the sun was out", "fog lay on the fields",
           "it had snowed in the night", "the evening was warm and still"]
NUMBER = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
          "eighteen nineteen twenty").split()
SAID = ["I will be back before dark", "nobody has seen the old road since", "we should ask at the {place}",
        "the {thing} was never mine", "there is always another {thing}", "you can trust {name} with it",
        "I counted them twice", "it is further than it looks"]


def plural(n, colour, thing):
    return f"{NUMBER[n]} {colour} {thing}{'' if n == 1 else 's'}"


class Document:
    def __init__(self, rng):
        self.rng = rng
        self.cast = rng.sample(FIRST, rng.randint(3, 4))
        self.kinds = [(rng.choice(COLOUR), t) for t in rng.sample(THING, 3)]
        self.own = {(p, k): rng.randint(2, 9) for p in self.cast for k in self.kinds}
        self.places = rng.sample(PLACE, 4)
        self.miles = {}
        for i, a in enumerate(self.places):
            for b in self.places[i + 1:]:
                self.miles[a, b] = rng.randint(2, 20)

    def holdings(self):
        who = self.rng.choice(self.cast)
        return f"{who} has " + ", ".join(plural(self.own[who, k], *k) for k in self.kinds[:-1]) + \
            f" and {plural(self.own[who, self.kinds[-1]], *self.kinds[-1])}."

    def gift(self):
        rng = self.rng
        giver, taker = rng.sample(self.cast, 2)
        kind = rng.choice(self.kinds)
        if self.own[giver, kind] < 1 or self.own[taker, kind] > 15:
            return self.holdings()
        n = rng.randint(1, min(self.own[giver, kind], 4))
        before = self.own[giver, kind]
        self.own[giver, kind] -= n
        self.own[taker, kind] += n
        return (f"{giver} gives {plural(n, *kind)} to {taker}. {giver} had {NUMBER[before]}, so now {giver} has "
                f"{NUMBER[before - n]} and {taker} has {NUMBER[self.own[taker, kind]]}.")

    def distance(self):
        (a, b), miles = self.rng.choice(list(self.miles.items()))
        if self.rng.random() < 0.5:
            a, b = b, a
        return f"From the {a} to the {b} it is {NUMBER[miles]} mile{'s' if miles != 1 else ''}."

    def walk(self):
        rng = self.rng
        who, stops = rng.choice(self.cast), rng.sample(self.places, 3)
        leg = [self.miles.get((a, b)) or self.miles[b, a] for a, b in zip(stops, stops[1:])]
        return (f"{who} walks from the {stops[0]} to the {stops[1]}, {NUMBER[leg[0]]} miles, and on to the {stops[2]}, "
                f"{NUMBER[leg[1]]} miles: {leg[0]} plus {leg[1]} is {sum(leg)} miles in all.")

    def talk(self):
        rng = self.rng
        a, b = rng.sample(self.cast, 2)
        line = rng.choice(SAID).format(place=rng.choice(self.places), thing=rng.choice(self.kinds)[1], name=rng.choice(self.cast))
        return f'"{line[0].upper()}{line[1:]}," said {a} to {b}. {b} told the others: {a} said "{line}".'

    def packing(self):
        rng = self.rng
        who, things = rng.choice(self.cast), rng.sample(THING, rng.randint(4, 6))
        listing = ", ".join(things)
        return f"{who} packs: {listing}. At the {rng.choice(self.places)} {who} unpacks: {listing}."

    def sums(self):
        a, b = self.rng.randint(2, 60), self.rng.randint(2, 39)
        return self.rng.choice([f"{a} plus {b} is {a + b}.", f"{a + b} minus {b} is {a}."])

    def scene(self):
        who = self.rng.choice(self.cast)
        return f"When {self.rng.choice(WEATHER)}, {who} went to the {self.rng.choice(self.places)}."

    def text(self):
        rng = self.rng
        kinds = [self.holdings, self.gift, self.gift, self.distance, self.walk, self.talk, self.packing, self.sums, self.scene]
        title = f"The {rng.choice(COLOUR)} {rng.choice(THING)} of {self.cast[0]}"
        paragraphs = [" ".join(rng.choice(kinds)() for _ in range(rng.randint(3, 6))) for _ in range(rng.randint(3, 6))]
        return "\n".join([f"= {title} =", f"{' and '.join(self.cast)} live near the {self.places[0]}."] + paragraphs) + "\n"


def stream(seed):
    """Yields documents without end; the same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        yield Document(rng).text() + "\n"


if __name__ == "__main__":
    size, seed, written = int(sys.argv[1]), int(sys.argv[2]), 0
    for doc in stream(seed):
        if written + len(doc) > size:
            break
        sys.stdout.write(doc)
        written += len(doc)
