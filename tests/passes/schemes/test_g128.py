from __future__ import annotations

from tests.passes.schemes.group_size import GroupSizeTests


class TestGroupsOf128(GroupSizeTests):
    size = 128
