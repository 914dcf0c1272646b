"""Docstrings as the reference shows them: links between them, and arguments that transformers would complete."""

import re
from typing import Any

import griffe

# A name in the way of transformers' documentation: [`LladaVConfig`], [`LladaVModel.get_image_features`], [`~X.y`].
NAMED = re.compile(r"\[`(~?)(\w+(?:\.\w+)*)`\](?![\[(])")
# The first line of an argument, as `auto_docstring` takes them: without a section around them.
TYPED = re.compile(r"^( *\w+) \((`.*)\):", re.MULTILINE)
ARGUMENT = re.compile(r"^\w+ \([^\n]*\):\n", re.MULTILINE)
COMMON = "Takes these besides what every model of transformers takes."


class Docstrings(griffe.Extension):
    """Rewrites docstrings once the package is read."""

    def on_package(self, *, pkg: griffe.Module, **others: Any) -> None:
        """Go through the package.

        Args:
            pkg: the package.
            **others: unused.
        """
        self.names = {member: f"{pkg.path}.{member}" for member, found in pkg.members.items() if found.is_alias}
        for module in pkg.modules.values():
            self._rewrite(module, module)

    def _rewrite(self, parent: griffe.Object, module: griffe.Module) -> None:
        for member in parent.members.values():
            if isinstance(member, griffe.Alias) or member.is_module:
                continue
            self._complete(member, module)
            if member.docstring is not None:
                # Types are shown as code already, so that marks inside them would be seen.
                plain = TYPED.sub(lambda line: f"{line[1]} ({re.sub('[`*]', '', line[2])}):", member.docstring.value)
                member.docstring.value = self._linked(plain, module)
            if member.is_class:
                self._rewrite(member, module)

    def _complete(self, member: griffe.Object, module: griffe.Module) -> None:
        """Give what `auto_docstring` would complete at run time an introduction and a section of arguments."""
        decorators = [str(item.value) for item in getattr(member, "decorators", ())]
        automatic = next((text for text in decorators if text.startswith("auto_docstring")), None)
        if automatic is None:
            return
        intro = re.search(r"custom_intro=(['\"])(.*)\1\)", automatic)
        text = member.docstring.value if member.docstring is not None else ""
        if ARGUMENT.match(text):
            listed, *after = re.split(r"\n\n(?=\S)(?!\w+ \()", text, maxsplit=1)
            text = "\n\n".join(["Args:\n" + re.sub(r"(?m)^", "    ", listed), *after])
            before = module.docstring.value if member.is_class and module.docstring is not None else COMMON
            text = f"{before}\n\n{text}"
        text = f"{intro[2]}\n\n{text}" if intro else text
        if text:
            given = member.docstring or griffe.Docstring("", parent=member, lineno=member.lineno)
            member.docstring, given.value = given, text

    def _linked(self, text: str, module: griffe.Module) -> str:
        """A docstring whose references are links where the reference has an entry, and plain code elsewhere."""

        def link(match: re.Match[str]) -> str:
            short, name = match[1], match[2]
            first, _, rest = name.partition(".")
            home = self.names.get(first) or f"{module.path}.{first}"
            path = f"{home}.{rest}" if rest else home
            words = name.rpartition(".")[2] if short else name
            return f'<autoref identifier="{path}" optional hover><code>{words}</code></autoref>'

        return NAMED.sub(link, text)
