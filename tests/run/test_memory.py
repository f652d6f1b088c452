"""What a process keeps in memory."""

from harness.run.memory import Memory


def test_a_thing_is_made_once_and_kept():
    memory, made = Memory({}), []
    for _ in range(2):
        assert memory.get("judge", "a", lambda: made.append("a") or "a thing") == "a thing"
    assert made == ["a"]
    memory.drop("judge")
    memory.get("judge", "a", lambda: made.append("again"))
    assert made == ["a", "again"]


def test_of_a_kind_with_a_limit_the_last_used_stay_and_room_is_made_before():
    memory, loaded = Memory({"policy": 2}), set()

    class Model:
        def __init__(self, name):
            assert len(loaded) < 2, "one too many at a time"
            self.name = name
            loaded.add(name)

        def __del__(self):
            loaded.discard(self.name)

    for name in ("a", "b", "a", "c"):
        memory.get("policy", name, lambda name=name: Model(name))
    assert loaded == {"a", "c"}, "b was used longest ago"
    assert memory.get("other", "a", lambda: 1) == 1, "kinds do not know of each other"
