"""The flags of every family as frozen groups of options: one field, one flag; a file for each group.

Tables, not logic; a file has the name of the group's field in `TrainConfig`. Names, types and defaults are
sd-scripts'; where ours differ, the help says so. What an option does not do here is declared with it:
`ignored` or `refused`, with the reason.
"""
