"""The cache with room: equal to Transformers' own, and without copies."""

import torch

from leadre.decoding.cache import RoomyLayer


def states(length, seed):
    return torch.randn(2, 3, length, 4, generator=torch.Generator().manual_seed(seed))


def test_what_is_written_in_pieces_is_read_as_one():
    layer, pieces = RoomyLayer(room=3), [states(5, 0), states(2, 1), states(1, 2)]
    for number, piece in enumerate(pieces):
        keys, values = layer.update(piece, -piece)
        whole = torch.cat(pieces[: number + 1], 2)
        assert torch.equal(keys, whole)
        assert torch.equal(values, -whole)
    assert layer.get_seq_length() == 8
    assert layer.get_mask_sizes(2) == (10, 0)


def test_the_buffer_stays_where_it_is_while_there_is_room():
    layer = RoomyLayer(room=3)
    layer.update(states(5, 0), states(5, 0))
    place = layer.keys.data_ptr()
    assert layer.update(states(2, 1), states(2, 1))[0].data_ptr() == place
    assert layer.update(states(1, 2), states(1, 2))[0].data_ptr() == place


def test_more_than_the_room_is_taken_too():
    layer = RoomyLayer(room=0)
    pieces = [states(length, length) for length in (5, 2, 4, 1)]
    for piece in pieces:
        keys, _ = layer.update(piece, piece)
    assert torch.equal(keys, torch.cat(pieces, 2))
