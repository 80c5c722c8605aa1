"""Print every public name and its public members, which vulture counts as used.

`make lint` hands them to vulture beside the library: what is left is dead code.
"""

import dataclasses

import resnet_ft


def main() -> None:
    print("import resnet_ft\n")
    for name in resnet_ft.__all__:
        value = getattr(resnet_ft, name)
        print(f"resnet_ft.{name}")
        if isinstance(value, type):
            fields = (
                [field.name for field in dataclasses.fields(value)]
                if dataclasses.is_dataclass(value)
                else []
            )
            members = {*vars(value), *fields}
            for member in sorted(member for member in members if not member.startswith("_")):
                print(f"resnet_ft.{name}.{member}")


if __name__ == "__main__":
    main()
