"""``python -m edgekit`` lists the verbs; ``python -m edgekit VERB`` runs one."""

from edgekit.base.cli import main

raise SystemExit(main())
