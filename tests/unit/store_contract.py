"""What every store must do, whatever it is made of."""

from __future__ import annotations

import pytest

from kafka_backup.errors import WriterConflictError
from kafka_backup.repository.store import ObjectExistsError, ObjectNotFoundError, Store, put_once


def put(store: Store, key: str, data: bytes) -> None:
    with store.create(key) as writer:
        writer.write(data)
        writer.commit()


class StoreContract:
    """Inherited by the tests of each store, which give the fixture `store`: an empty one."""

    @pytest.mark.parametrize("size", [0, 1, 5000, 3 << 20])
    def test_reads_back_what_was_written(self, store: Store, size: int) -> None:
        """An object written in pieces, from a buffer that is used again, reads back byte for byte.

        It matters because segments are written piece by piece from the network's buffer.
        A store that kept a view of the buffer would store what the next response put there.
        """
        expected = bytes(range(256)) * (size // 256 + 1)
        expected = expected[:size]
        buffer = bytearray(1 << 16)
        with store.create("a/object.log") as writer:
            for start in range(0, size, len(buffer)):
                piece = expected[start : start + len(buffer)]
                buffer[: len(piece)] = piece
                writer.write(memoryview(buffer)[: len(piece)])
            buffer[:] = bytes(len(buffer))
            writer.commit()
        assert store.get("a/object.log") == expected
        assert store.size("a/object.log") == size
        assert [(info.key, info.size) for info in store.list("")] == [("a/object.log", size)]

    def test_nothing_is_seen_before_the_commit(self, store: Store) -> None:
        """An object that is being written is not there, and leaves nothing when it is given up.

        It matters because what can be seen can be restored: it must be whole.
        A half-written segment could be listed, or stay behind as one.
        """
        for data in (b"small", b"x" * (2 << 20)):
            with store.create("a/object") as writer:
                writer.write(data)
                assert store.size("a/object") is None
                assert list(store.list("")) == []
            writer.abort()
            assert list(store.list("")) == []

    def test_creates_only_once(self, store: Store) -> None:
        """A taken key is refused, again and again, and the first object stays as it is.

        It matters because the commit log is the lock of all writers.
        A second writer could replace the first one's commit, and with it what was captured.
        """
        put(store, "a/1.json", b"first")
        with store.create("a/1.json") as writer:
            writer.write(b"second")
            for _ in range(2):
                with pytest.raises(ObjectExistsError, match=r"a/1\.json"):
                    writer.commit()
        assert store.get("a/1.json") == b"first"
        assert [info.key for info in store.list("")] == ["a/1.json"]

    def test_put_once_knows_its_own_objects(self, store: Store) -> None:
        """Equal bytes at a taken key are our own earlier try, other bytes are another writer.

        It matters because an acknowledgement can get lost after the object was stored.
        A run would stop at its own commit, or take another writer's for its own.
        """
        assert put_once(store, "a/1.json", b"ours") == "created"
        assert put_once(store, "a/1.json", b"ours") == "ours"
        with pytest.raises(WriterConflictError, match=r"a/1\.json was written by another writer"):
            put_once(store, "a/1.json", b"theirs")
        assert store.get("a/1.json") == b"ours"

    def test_reads_parts(self, store: Store) -> None:
        """A range is half-open, and an end beyond the object means its end.

        It matters because tools look into segments without reading all of them.
        An inclusive end, as HTTP has, would give one byte too many.
        """
        put(store, "object", b"0123456789")
        assert store.get("object", 0, 4) == b"0123"
        assert store.get("object", 3, 4) == b"3"
        assert store.get("object", 7) == b"789"
        assert store.get("object", 7, 100) == b"789"

    @pytest.mark.parametrize("size", [0, 1, 10, 9 << 20])
    def test_reads_in_pieces(self, store: Store, size: int) -> None:
        """An open object tells its true size, and fills buffers from any place, as often as it is asked.

        It matters because a segment is read twice: to prove it, and to use it.
        An object that was cut off could pass with zeros at its end, or the second reading give other bytes.
        """
        data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        put(store, "object", data)
        reader = store.open("object")
        assert reader.size == size
        for start in (0, 0, size // 2, max(0, size - 1), size, size + 5):
            for length in (size, 3, 0):
                buffer = bytearray(length)
                count = reader.read_into(memoryview(buffer), start)
                assert buffer[:count] == data[start : start + length]
                assert count == len(data[start : start + length])
                assert not any(buffer[count:])
        reader.close()
        reader.close()

    def test_missing_objects(self, store: Store) -> None:
        """What is not there is said to be not there: reading fails by name, deleting is no error.

        It matters because the end of a commit log is found by what is not there.
        An unreachable store could pass for an empty one.
        """
        for key in ("none", "no/such/object"):
            with pytest.raises(ObjectNotFoundError, match=key):
                store.get(key)
            with pytest.raises(ObjectNotFoundError, match=key):
                store.open(key)
            assert store.size(key) is None
            store.delete(key)
        assert list(store.list("no/")) == []
        assert store.folders("no/") == []

    def test_lists_in_order_of_keys(self, store: Store) -> None:
        """Listings are in order of keys' bytes, of one folder alone, and begin after a key.

        It matters because commits are found by number, from a point on.
        Folders walked one by one put "a/x" before "a-b/x", and "a/" must not list "a-b/".
        """
        keys = ["a-b/x", "a/b/1", "a/b/2", "a/b.json", "a/b0", "a/c", "a0", "b", "A/z"]
        for key in keys:
            put(store, key, key.encode())
        assert [info.key for info in store.list("")] == sorted(keys)
        assert [info.key for info in store.list("a/")] == ["a/b.json", "a/b/1", "a/b/2", "a/b0", "a/c"]
        for key in [*keys, "a/b", "a/b/", "a", "zzz"]:
            assert [info.key for info in store.list("", key)] == [k for k in sorted(keys) if k > key]
        assert store.folders("") == ["A", "a", "a-b"]
        assert store.folders("a/") == ["b"]
        assert store.folders("b/") == []

    def test_lists_more_than_a_page(self, store: Store) -> None:
        """1,050 objects are all listed, once each.

        It matters because stores list 1,000 objects at a time.
        A commit log would end at commit 999, and the next capture would collide with commit 1,000.
        """
        keys = [f"commits/{number:020}.json" for number in range(1050)]
        for key in keys:
            put(store, key, b"{}")
        assert [info.key for info in store.list("commits/")] == keys
        assert [info.key for info in store.list("commits/", keys[1040])] == keys[1041:]

    def test_deletes(self, store: Store) -> None:
        """A deleted object is gone, its neighbours stay, and its key can be created again.

        It matters because retention deletes, one object after the other.
        A prefix taken for a key would delete a whole topic.
        """
        for key in ("a/1", "a/10", "a/1.json"):
            put(store, key, b"x")
        store.delete("a/1")
        assert [info.key for info in store.list("")] == ["a/1.json", "a/10"]
        put(store, "a/1", b"new")
        assert store.get("a/1") == b"new"

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "../a", "a/../../b", "./a", "a b", "a/tmp~1", "ä"]
    )
    def test_impossible_keys(self, store: Store, key: str) -> None:
        """A key that could leave its folder, or hide among temporary files, is a mistake in the program.

        It matters because topic names come from outside.
        "../" in a name could write anywhere on the machine.
        """
        for call in (store.create, store.get, store.open, store.size, store.delete):
            with pytest.raises(ValueError, match="not a key"):
                call(key)
