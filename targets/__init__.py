"""What a target is: its TVM target, its kernel rules, its schedules, its lowering."""
