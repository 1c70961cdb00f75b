from __future__ import annotations

from tests.passes.schemes.group_size import GroupSizeTests


class TestGroupsOf64(GroupSizeTests):
    size = 64
