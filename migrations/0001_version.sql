-- The numbers of cuts, and of generations: one order for both, so that a node can compare them.
-- Everything of ours stands in the schema `rowcast`, which the migrator creates: dropping it removes us without a trace.
comment on schema rowcast is 'Rowcast: what is published, which keys changed, and how far they were delivered.';

create sequence rowcast.version as bigint minvalue 1 maxvalue 9007199254740991 cache 1;
comment on sequence rowcast.version is
    'Versions of cuts and generations of publications. Never reused; below 2^53, so that a browser holds them in a number.';
